"""Draws docs/images/augmentation.png: what each operation and each policy does to one picture.

python docs/make_augmentation.py
"""

from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_vit.data import Augment, Augmentation, ImageSet, TrainingBatches
from keras_vit.data.augmentation import OPERATIONS, operation_matrices

SHEET = Path(__file__).parent / "images" / "augmentation.png"
SIDE, MARGIN, CAPTION, COLUMNS = 88, 5, 14, 8
SCENE_SIZE = (120, 160)
# Arguments at about magnitude 9, blur and greyscale as three-augment has them.
SHOWN_OPERATIONS = [
    ("autocontrast", 0), ("equalize", 0), ("invert", 0), ("posterize", 1), ("solarize", 26),
    ("solarize_add", 99), ("contrast", 1.8), ("contrast", 0.2), ("brightness", 1.8),
    ("brightness", 0.2), ("color", 1.8), ("color", 0.0), ("sharpness", 1.8), ("sharpness", 0.2),
    ("blur", 2.0), ("rotate", 27), ("shear_x", 0.27), ("shear_y", 0.27), ("translate_x", 0.3),
    ("translate_y", 0.3),
]  # fmt: skip
SHOWN_POLICIES = {
    'crop="resize"': {"horizontal_flip": False},
    'crop="squash"': {"crop": "squash", "horizontal_flip": False},
    'crop="inception"': {"crop": "inception", "crop_min_area": 0.08},
    'crop="pad"': {"crop": "pad", "crop_padding": 24},
    'augment="randaugment"': {"augment": "randaugment"},
    'augment="augmix"': {"augment": "augmix", "augment_magnitude": 5},
    'augment="three"': {"augment": "three"},
    "color_jitter=0.4": {"color_jitter": 0.4},
    "random_erasing=1": {"random_erasing": 1.0},
    "mixup=0.8": {"mixup": 0.8},
    "cutmix=1": {"cutmix": 1.0},
}


def scene(kind: int) -> np.ndarray:
    """A drawn landscape, uint8: a house by day or a boat in the evening."""
    height, width = SCENE_SIZE
    scale = 4
    skies = [((70, 130, 210), (200, 225, 240)), ((60, 40, 110), (250, 160, 90))]
    top, bottom = (np.array(color, float) for color in skies[kind])
    share = np.linspace(0, 1, height * scale)[:, None, None]
    pixels = np.broadcast_to(top + share * (bottom - top), (height * scale, width * scale, 3))
    picture = Image.fromarray(pixels.astype("uint8"))
    draw = ImageDraw.Draw(picture)

    def ellipse(x, y, rx, ry, color):
        draw.ellipse(
            [scale * (x - rx), scale * (y - ry), scale * (x + rx), scale * (y + ry)], color
        )

    def polygon(points, color):
        draw.polygon([(scale * x, scale * y) for x, y in points], color)

    if kind == 0:
        ellipse(132, 22, 12, 12, (255, 226, 80))
        ellipse(30, 135, 90, 52, (88, 158, 72))
        ellipse(130, 140, 90, 48, (62, 130, 60))
        polygon([(44, 58), (96, 58), (96, 100), (44, 100)], (214, 96, 70))
        polygon([(38, 58), (70, 30), (102, 58)], (110, 50, 40))
        polygon([(62, 74), (78, 74), (78, 100), (62, 100)], (80, 60, 50))
        for x in (50, 83):
            polygon([(x, 66), (x + 8, 66), (x + 8, 75), (x, 75)], (240, 240, 200))
        polygon([(124, 66), (130, 66), (130, 98), (124, 98)], (96, 66, 40))
        ellipse(127, 56, 16, 18, (30, 100, 50))
        for x, color in ((16, (240, 80, 140)), (26, (250, 220, 60)), (36, (240, 240, 255))):
            ellipse(x, 104, 4, 4, color)
    else:
        ellipse(45, 62, 17, 17, (255, 220, 150))
        polygon([(0, 70), (160, 70), (160, 120), (0, 120)], (30, 60, 110))
        for y in range(76, 118, 7):
            polygon([(12 + y % 11, y), (78 - y % 13, y), (70, y + 2), (20, y + 2)], (240, 170, 110))
        polygon([(84, 88), (146, 88), (134, 102), (96, 102)], (150, 40, 40))
        polygon([(113, 22), (113, 84), (84, 84)], (250, 245, 230))
        polygon([(117, 30), (117, 84), (142, 84)], (230, 200, 120))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))


def run(policy, inputs):
    images = keras.ops.convert_to_numpy(Augment(policy)(inputs))
    return np.rint(images).astype("uint8")


def operation_pictures(image):
    """Captions and pictures of each operation."""
    for name, value in SHOWN_OPERATIONS:
        policy = Augmentation(SIDE, augment="three" if name == "blur" else "randaugment")
        inputs = {
            "images": image[None],
            "operations": np.array([[OPERATIONS.index(name)]], "int32"),
            "operation_values": np.array([[value]], "float32"),
        }
        if policy.augment == "randaugment":
            matrices = operation_matrices(inputs["operations"][0], np.array([value]), (SIDE, SIDE))
            inputs["matrices"] = matrices[:, :2].reshape(1, 6).astype("float32")
        caption = name if name in ("autocontrast", "equalize", "invert") else f"{name} {value:g}"
        yield caption, run(policy, inputs)[0]


def policy_pictures(images):
    """Captions and rows of pictures of each policy."""
    labels = np.arange(len(images), dtype="int32")
    image_set = ImageSet(images, labels, ("house", "boat"))
    for caption, options in SHOWN_POLICIES.items():
        policy = Augmentation(SIDE, **options)
        stream = TrainingBatches(
            image_set, batch_size=2 * (COLUMNS - 1), seed=1, augmentation=policy, micro_batch_size=2
        )
        pictures = []
        for first in range(0, stream.batch_size, 2):
            inputs = {name: array[first : first + 2] for name, array in stream[0][0].items()}
            house = 0 if (inputs["images"][0] == images[0]).all() else 1
            pictures.append(run(policy, inputs)[house])
        yield caption, pictures


def main():
    SHEET.parent.mkdir(exist_ok=True)
    images = np.stack([scene(0), scene(1)])
    image = run(
        Augmentation(SIDE),
        {"images": images[:1], "boxes": np.array([[0, 20, 120, 140]], "float32")},
    )[0]
    operations = [("the picture", image), *operation_pictures(image)]
    policies = list(policy_pictures(images))
    rows = -(-len(operations) // COLUMNS) + len(policies)
    step_x, step_y = SIDE + MARGIN, SIDE + MARGIN + CAPTION
    size = COLUMNS * step_x + MARGIN, rows * step_y + MARGIN
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)

    def paste(row, column, picture, caption=""):
        x, y = MARGIN + column * step_x, MARGIN + row * step_y
        draw.text((x, y), caption, "black", font)
        sheet.paste(Image.fromarray(picture), (x, y + CAPTION))

    for number, (caption, picture) in enumerate(operations):
        paste(*divmod(number, COLUMNS), picture, caption)
    first = -(-len(operations) // COLUMNS)
    for row, (caption, pictures) in enumerate(policies, first):
        x, y = MARGIN, MARGIN + row * step_y + CAPTION + SIDE // 2 - 6
        name, _, value = caption.partition("=")
        draw.text((x, y), f"{name}=\n{value}", "black", font)
        for column, picture in enumerate(pictures, 1):
            paste(row, column, picture)
    sheet.save(SHEET, optimize=True)
    print(f"{SHEET}: {sheet.size}, {SHEET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
