"""Files that other programs open; the only other place where x, y, z order occurs."""
