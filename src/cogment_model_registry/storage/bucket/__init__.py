"""The archive in a bucket: an object store such as S3, or a local path by the same interface."""
