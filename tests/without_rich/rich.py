"""Hides the package rich, which the tools of developers bring and a server does not install: see `clean_environment`."""

raise ImportError("it is hidden from the programs that tests run")
