"""Small clients of Tailrace, to read and to run. README.md in this folder explains how."""
