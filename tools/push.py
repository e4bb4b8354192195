"""Send a trained model with a card made from its run to the Hugging Face Hub."""

from densenet_backbones.sharing.push import main

if __name__ == "__main__":
    main()
