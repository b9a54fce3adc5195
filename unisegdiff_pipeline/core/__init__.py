"""What everybody stands on: errors, labels, geometry, serialization, files, parallel work, progress."""
