"""The whole way on generated phantoms: their making, and the report of usd_demo."""
