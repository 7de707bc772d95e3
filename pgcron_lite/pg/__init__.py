"""The PostgreSQL store. The only package that knows `psycopg`; nothing outside imports it before it is needed."""
