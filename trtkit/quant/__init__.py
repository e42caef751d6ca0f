"""Numbers: writing lower precision into a graph, and finding out where that is safe."""
