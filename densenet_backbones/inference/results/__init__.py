"""Results of a prediction: their types, their pictures, and the formats they are saved in."""
