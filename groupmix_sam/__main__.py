"""`python -m groupmix_sam`, for torchrun and accelerate launch."""

from .cli import main

main()
