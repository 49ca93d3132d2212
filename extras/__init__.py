"""What goes beyond a course: built from the parts of rollnumber_04.py, which loads one when it is asked for."""
