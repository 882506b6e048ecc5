"""What every wing uses: the console, errors in one line, files that are whole at any time.

Imports nothing of this project.
"""
