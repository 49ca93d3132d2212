"""Further systems, built from the parts of rollnumber_04.py."""
