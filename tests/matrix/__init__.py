"""The matrix: every operation that touches a target, in every place where one can live, asked for by every kind of caller."""
