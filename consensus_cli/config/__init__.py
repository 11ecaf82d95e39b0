"""The typed configuration: schema, ranges, composition, and what is said of mistakes in it."""
