"""`pgcron dev`: a database, a worker that reloads, and a first job, with one command."""
