"""Processes, meshes, where arrays lie, and time cut over devices. Knows no RoFormer."""
