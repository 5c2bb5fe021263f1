"""What `docker/backup` and `docker/restore` need besides Postgres' own tools; each file is a command of its own."""
