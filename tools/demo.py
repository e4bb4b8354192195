"""Show what trained models find, on a page in the browser."""

from densenet_backbones.demo.command import main

if __name__ == "__main__":
    main()
