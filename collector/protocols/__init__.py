"""Parsers of what is on the wire: pure functions over bytes, for which any bytes are normal."""
