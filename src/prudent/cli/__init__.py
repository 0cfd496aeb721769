"""One thin module a command: it parses, wires, prints."""
