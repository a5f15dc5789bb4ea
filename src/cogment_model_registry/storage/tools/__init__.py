"""The tools of an archive directory that need both its files and its database, without a server."""
