"""The sheet a scene is painted on, and the two looks it is developed in.

"domain" is the target: an aerial sensor over lit ground. "base" is what the pretrained model draws:
the same layout as a flat, saturated map illustration, without light, texture or sensor.
"""

import numpy as np

from .noise import blur, cells, cover, fbm, grid

f32 = np.float32
LOOKS = ("domain", "base")

# material -> color word -> (domain RGB, base RGB); captions take the word, the look takes the RGB
PALETTE: dict[str, dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]]] = {
    "soil": {
        "brown": ((136, 110, 84), (205, 122, 58)),
        "gray": ((140, 132, 120), (190, 176, 200)),
        "red": ((150, 102, 78), (236, 96, 62)),
        "yellow": ((172, 148, 108), (250, 204, 92)),
        "dark": ((104, 90, 74), (122, 66, 40)),
    },
    "sand": {
        "yellow": ((194, 166, 120), (255, 214, 74)),
        "brown": ((152, 124, 94), (222, 140, 70)),
        "red": ((178, 126, 88), (255, 128, 66)),
        "gray": ((172, 162, 144), (226, 206, 196)),
    },
    "beach": {
        "yellow": ((206, 186, 146), (255, 224, 110)),
        "white": ((222, 212, 190), (255, 244, 214)),
        "brown": ((164, 138, 106), (232, 160, 92)),
    },
    "crop": {
        "green": ((94, 118, 66), (92, 206, 62)),
        "dark green": ((60, 84, 52), (22, 146, 74)),
        "light green": ((138, 152, 90), (182, 240, 88)),
        "yellow": ((182, 164, 104), (255, 222, 56)),
        "brown": ((134, 106, 82), (214, 128, 64)),
        "gray": ((144, 134, 116), (206, 190, 178)),
    },
    "grass": {
        "green": ((92, 116, 66), (104, 220, 72)),
        "dark green": ((66, 90, 56), (30, 164, 84)),
        "light green": ((130, 148, 86), (176, 242, 96)),
        "yellow": ((166, 154, 98), (240, 224, 76)),
    },
    "tree": {
        "green": ((66, 92, 52), (42, 176, 58)),
        "dark green": ((42, 62, 42), (0, 116, 72)),
        "light green": ((98, 120, 62), (128, 214, 50)),
    },
    "autumn": {
        "orange": ((142, 104, 64), (255, 132, 24)),
        "red": ((122, 78, 60), (236, 60, 44)),
        "yellow": ((164, 138, 66), (255, 204, 30)),
    },
    "blossom": {
        "white": ((204, 200, 196), (255, 246, 255)),
        "pink": ((198, 160, 168), (255, 140, 196)),
    },
    "water": {
        "blue": ((52, 88, 122), (40, 130, 255)),
        "dark blue": ((28, 46, 68), (30, 60, 190)),
        "green": ((62, 92, 76), (0, 190, 160)),
        "light blue": ((92, 138, 152), (90, 214, 255)),
        "brown": ((98, 92, 70), (172, 140, 104)),
    },
    "sea": {
        "blue": ((46, 88, 124), (30, 120, 255)),
        "dark blue": ((26, 52, 80), (24, 62, 200)),
        "green": ((48, 100, 104), (0, 196, 176)),
        "gray": ((88, 104, 112), (130, 160, 210)),
    },
    "shallow": {
        "light blue": ((112, 164, 166), (120, 232, 255)),
        "green": ((104, 142, 124), (110, 244, 214)),
    },
    "snow": {"white": ((224, 228, 234), (236, 246, 255))},
    "rock": {
        "gray": ((112, 108, 104), (150, 140, 176)),
        "brown": ((108, 92, 78), (160, 104, 88)),
        "dark": ((70, 68, 68), (92, 82, 120)),
    },
    "road": {
        "gray": ((134, 132, 130), (206, 206, 214)),
        "white": ((182, 178, 170), (255, 250, 236)),
        "dark": ((88, 88, 92), (120, 122, 140)),
    },
    "track": {"brown": ((164, 142, 114), (244, 190, 130))},
    "roof": {
        "red": ((158, 92, 72), (250, 70, 56)),
        "gray": ((142, 140, 140), (180, 178, 204)),
        "white": ((210, 206, 198), (255, 252, 244)),
        "blue": ((88, 116, 150), (54, 124, 246)),
        "brown": ((126, 98, 78), (208, 110, 52)),
    },
    "car": {
        "white": ((226, 226, 224), (255, 255, 255)),
        "black": ((44, 46, 50), (52, 44, 74)),
        "gray": ((150, 154, 158), (176, 184, 206)),
        "red": ((160, 58, 50), (255, 48, 48)),
        "blue": ((58, 86, 136), (36, 110, 255)),
    },
    "mark": {"white": ((226, 224, 216), (255, 255, 255))},
}


class Canvas:
    """A tile in the making: color, height, light and shadow, plus the facts captions may use.

    img (3, size, size) float32 in 0..255; height (size, size) in tile widths, which only the domain
    look lights; shade (size, size) is the share of direct sun kept by cast shadows.
    """

    def __init__(self, rng: np.random.Generator, size: int, look: str):
        self.rng, self.size, self.look = rng, size, look
        self.real = look == "domain"
        self.x, self.y = grid(size)
        self.soft = 1.4 / size
        self.img = np.zeros((3, size, size), np.float32)
        self.height = np.zeros((size, size), np.float32)
        self.level = np.zeros(
            (size, size), np.float32
        )  # 1 where the surface is flat whatever the height
        self.shade = np.ones((size, size), np.float32)
        # most flights are near noon with the sun on one side of the sky: a spread, not a circle
        azimuth = rng.uniform(-2.6, 0.4)
        self.sun = (float(np.cos(azimuth)), float(np.sin(azimuth)))
        self.sun_length = rng.uniform(0.5, 1.5)
        self.adjectives: list[str] = []
        self.details: list[str] = []
        self.near: list[str] = []
        self.season = ""

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return bool(self.rng.random() < p)

    def rgb(self, material: str, word: str, jitter: float = 0.08) -> np.ndarray:
        """This look's color (3,) of a material, slightly different each time."""
        tone = self.rng.standard_normal(4)
        pair = np.asarray(PALETTE[material][word], np.float32)
        if self.real:
            return np.clip(
                pair[0] * (1 + jitter * tone[0] + 0.25 * jitter * tone[1:]), 8, 250
            ).astype(np.float32)
        return np.clip(pair[1] * (1 + 0.04 * tone[0]), 0, 255).astype(np.float32)

    def pick(self, material: str, weights: list[float] | None = None) -> tuple[str, np.ndarray]:
        """A random variant of a material: its color word and its RGB (3,)."""
        words = list(PALETTE[material])
        word = words[int(self.rng.choice(len(words), p=weights))]
        return word, self.rgb(material, word)

    def noise(
        self, freq: float, octaves: int = 1, gain: float = 0.5, stretch: float = 1.0
    ) -> np.ndarray:
        """Fractal noise on this canvas (see noise.fbm)."""
        return fbm(self.rng, self.size, freq, octaves, gain, stretch)

    def bearing(self) -> float:
        """Direction of what people laid out, in radians: surveyed land keeps within a few degrees of the compass, mostly."""
        along = self.rng.integers(4) * np.pi / 2 + self.rng.normal(0, 0.05)
        return along if self.chance(0.85) else self.rng.uniform(0, np.pi)

    def uv(
        self, angle: float, warp: float = 0.0, freq: float = 1.5
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates turned by `angle` about the center, and bent by up to about `warp`."""
        x, y = self.x - f32(0.5), self.y - f32(0.5)
        if warp:
            x, y = x + f32(warp) * self.noise(freq), y + f32(warp) * self.noise(freq)
        c, s = f32(np.cos(angle)), f32(np.sin(angle))
        return c * x + s * y, c * y - s * x

    def sun_in(self, angle: float) -> tuple[float, float]:
        """Sun direction in coordinates turned by `angle`."""
        c, s = np.cos(angle), np.sin(angle)
        return c * self.sun[0] + s * self.sun[1], c * self.sun[1] - s * self.sun[0]

    def fill(self, color: np.ndarray, mask: np.ndarray | float = 1.0) -> None:
        """Paint a color, (3,) or (3, size, size), through a mask 0..1."""
        if color.ndim == 1:
            color = color[:, None, None]
        self.img += (color - self.img) * mask

    def mottle(self, field: np.ndarray, color: np.ndarray, amount: float = 1.0) -> None:
        """Blend toward a color where the field is high; the base look draws hard-edged patches."""
        steep = 0.5 if self.real else 6.0
        self.fill(color, f32(amount) * np.clip(0.5 + steep * (field - 0.3), 0, 1))

    def grain(self, field: np.ndarray, amount: float) -> None:
        """Multiply brightness by a texture; the base look is smooth and leaves it out."""
        if self.real:
            self.img *= np.clip(1 + f32(amount) * field, 0.3, 1.8)

    def relief(self, field: np.ndarray, amount: float) -> None:
        """Raise the ground by amount * field, in tile widths."""
        if self.real:
            self.height += f32(amount) * field

    def flatten(self, mask: np.ndarray) -> None:
        """Level the ground under a mask (water, pavement) and lift the shadows from it."""
        self.level = np.maximum(self.level, mask)
        self.shade += (1 - self.shade) * mask

    def cast(self, mask: np.ndarray, strength: float = 0.55) -> None:
        """Take direct sun away under a shadow mask."""
        if self.real:
            self.shade *= 1 - f32(strength) * mask

    def crowns(
        self,
        u,
        v,
        angle,
        period,
        radius,
        keep,
        colors,
        jitter=1.0,
        rough=0.2,
        shadow=True,
        where=None,
    ) -> np.ndarray:
        """Trees on a jittered lattice; radius (low, high) is a share of the period. Returns the mask."""
        lu, lv, r = cells(self.rng, u, v, period, period)
        ragged = self.noise(14, 2) * f32(rough * period * 0.3)
        rad = f32(period) * (radius[0] + (radius[1] - radius[0]) * r[0])
        room = np.maximum(f32(0.5 * period) - rad, 0) * f32(2 * jitter)
        lu, lv = lu - (r[1] - 0.5) * room, lv - (r[2] - 0.5) * room
        absent = np.where(r[3] < keep, f32(0), f32(9))
        if where is not None:
            absent = absent + np.where(where > 0.5, f32(0), f32(9))
        d2 = lu * lu + lv * lv
        mask = cover(np.sqrt(d2) - rad + ragged + absent, self.soft)
        if shadow and self.real:
            su, sv = self.sun_in(angle)
            k = f32(0.55 * self.sun_length) * rad
            far = (
                np.sqrt((lu + su * k) ** 2 + (lv + sv * k) ** 2) - rad * f32(0.95) + ragged + absent
            )
            self.cast(cover(far, self.soft * 1.5) * (1 - mask), 0.6)
        self.shade += (1 - self.shade) * mask
        self.level *= 1 - mask
        mix = r[3] / max(keep, 1e-3)
        self.fill(
            colors[0][:, None, None] + (colors[1] - colors[0])[:, None, None] * np.clip(mix, 0, 1),
            mask,
        )
        # flatter than a ball, and lumpy: a crown, not a bead
        lumps = self.noise(18, 3, 0.8)
        self.relief(np.maximum(rad * rad - d2, 0) / rad * (1 + f32(0.22) * lumps) * mask, 0.5)
        self.grain(lumps * mask, 0.09)
        return mask

    def develop(self) -> np.ndarray:
        """Light and expose the sheet: uint8 (size, size, 3)."""
        rng, img = self.rng, self.img
        if not self.real:
            return np.clip(np.moveaxis(blur(img, 0.06), 0, -1) + 0.5, 0, 255).astype(np.uint8)
        gy, gx = np.gradient(self.height * f32(self.size))
        slope = -(gx * f32(self.sun[0]) + gy * f32(self.sun[1]))
        slope *= 1 - self.level
        lit = 1 + np.tanh(slope * f32(rng.uniform(0.7, 1.1))) * f32(0.55)
        # shadowed and sun-averted ground keeps blue skylight, hence the channel-wise floor
        direct = lit * blur(self.shade, 0.12)
        img = img * (
            direct + np.array([-0.01, 0.0, 0.035], np.float32)[:, None, None] * (1 - direct)
        )
        exposure, haze, gamma = (
            rng.uniform(0.78, 1.18),
            rng.uniform(0, 1) ** 2 * 0.32,
            rng.uniform(0.85, 1.15),
        )
        warmth, tint = rng.normal(0, 0.03), rng.normal(0, 0.01)
        white = np.array([1 + warmth, 1 + tint, 1 - warmth])
        luma = img.mean(0)
        img = luma + (img - luma) * f32(rng.uniform(0.6, 1.0))
        air = np.array([196, 206, 216]) * rng.uniform(0.8, 1.05)
        img = img * (exposure * white).astype(np.float32)[:, None, None]
        img = np.clip(img / 255, 0.004, 1.2) ** f32(gamma) * 255
        img += (air.astype(np.float32)[:, None, None] - img) * f32(haze)
        # thin cloud or its shadow drifts over a few tiles
        drift = self.noise(1.2, 2)
        img *= 1 + f32(rng.uniform(0, 0.07)) * drift
        r2 = (self.x - f32(0.5)) ** 2 + (self.y - f32(0.5)) ** 2
        img *= 1 - f32(rng.uniform(0, 0.3)) * r2
        img = blur(img, rng.uniform(0.02, 0.14))
        sigma = rng.uniform(1.0, 4.0)
        grain = rng.standard_normal((2, self.size, self.size), dtype=np.float32)
        img += f32(sigma) * (
            grain[0] + f32(0.35) * np.array([1, -0.4, -0.8], np.float32)[:, None, None] * grain[1]
        )
        return np.clip(np.moveaxis(img, 0, -1) + f32(0.5), 0, 255).astype(np.uint8)
