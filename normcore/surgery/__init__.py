"""Surgery on models of anyone's: their norms swapped, folded away, exported. `normcore.convert` is the front door."""
