"""The embedded laboratory: every service of Normcore as processes of one machine, without Docker and without root."""
