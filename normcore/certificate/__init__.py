"""The certificate: properties of a layer, each tried on the layer itself, one kind of them per file."""
