"""Images to predict: files, URLs, arrays, pictures, videos and cameras."""
