"""Norms inside a recurrence: cells of an LSTM, one per file, and the loop over time that runs them."""
