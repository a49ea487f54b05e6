"""The launcher and the sweeper of bpexp."""
