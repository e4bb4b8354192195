"""Operations on whole sets: choose, rename and merge classes, and split into train and val."""
