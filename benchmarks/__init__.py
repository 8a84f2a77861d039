"""How fast kcompat is, beside what others do for the same purpose: ``python -m benchmarks`` runs and prints it all."""
