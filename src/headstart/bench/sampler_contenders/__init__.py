"""Few-shot episodes out of the same images, by headstart and by other libraries, a file each."""
