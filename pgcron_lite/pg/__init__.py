"""The PostgreSQL store, and the only package that imports `psycopg`. It is imported on first use."""
