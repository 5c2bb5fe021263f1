"""The menu: one frozen, strict, torch-free spec per part, one family per file; bounds and defaults live here."""
