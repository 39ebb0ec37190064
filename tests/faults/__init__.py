"""What goes wrong on purpose: crashes, stuck readers, full disks."""
