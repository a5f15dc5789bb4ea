"""Hides the package rich, which tools of developers install and the server does not need: see `clean_environment`."""

raise ImportError("it is hidden from the programs that tests run")
