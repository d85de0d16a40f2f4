"""Fiji: a bridge to its Java virtual machine, Appose tasks, and the scripts for its menu."""
