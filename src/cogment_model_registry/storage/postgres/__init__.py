"""The catalog in PostgreSQL, which several servers share."""
