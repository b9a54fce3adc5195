"""Reports that people look at: HTML pages that hold everything themselves and are read without a server."""
