"""Several servers on one PostgreSQL and one object store, while processes, databases and networks fail.

`proof` starts everything and injects `faults`. Clients in processes of their own record what they asked and what was
answered (`client`, `history`); afterwards `checks` and `linearizability` compare this history with the promises.
"""
