"""Circuits of many tasks as a folder of tables, computed in several processes and calls, and opened again."""
