"""Image files: formats, limits, and decoding with Pillow, libjpeg-turbo and GDAL."""
