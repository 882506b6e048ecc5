"""The two views of a tile: what is drawn, crops on the CPU, photometric changes on the device."""
