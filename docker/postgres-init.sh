#!/bin/sh
# What a new Postgres begins with: both databases, of a user who owns them and can do nothing else, since every machine
# that joins knows that user's password. The superuser has none, so that only the container's own socket lets it in.
set -eu
psql --no-psqlrc --set ON_ERROR_STOP=1 --username postgres --dbname postgres <<'SQL'
\getenv password POSTGRES_PASSWORD
CREATE ROLE normcore LOGIN PASSWORD :'password';
CREATE DATABASE normcore OWNER normcore;
CREATE DATABASE mlflow OWNER normcore;
ALTER ROLE postgres PASSWORD NULL;
SQL
