"""Parts of the check of a device, see ``check_gpu.py``."""
