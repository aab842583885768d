"""The canvas that a scene is painted on, and the two looks that it is rendered in.

"domain" is the target: an aerial sensor over lit ground. "base" is what the pretrained model draws:
the same layout as a flat, saturated map illustration, without light, texture or sensor.
"""

import numpy as np

from .noise import blur, coverage, f32, fractal_noise, lattice_cells, pixel_centers

LOOKS = ("domain", "base")

# Material -> color word -> RGB in the domain look, RGB in the base look. Captions take the word.
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


# A distance that is outside of every shape, in tile widths.
FAR_OUTSIDE = f32(9)


class Canvas:
    """A tile in the making: colors, terrain and shadows, and the facts that captions may tell.

    Attributes:
        rng: random numbers of this tile; both looks draw the same ones for the layout.
        size: pixels per side.
        is_domain: whether the look is "domain".
        x: pixel centers from left to right, [size, size] in (0, 1).
        y: pixel centers from top to bottom, [size, size] in (0, 1).
        edge_width: width of an antialiased edge, 1.4 pixels in tile widths.
        image: RGB in 0..255, [3, size, size].
        height: height of the ground in tile widths, [size, size]; only the domain look lights it.
        level: share of a pixel that is flat whatever its height says, [size, size] in [0, 1].
        sunlight: share of the direct sun that cast shadows leave, [size, size] in [0, 1].
        sun: unit vector (x, y) that points to the sun.
        shadow_length: length of a shadow relative to that at average sun height.
        adjectives, details, neighbors, season: what captions say of the scene.
    """

    def __init__(self, rng: np.random.Generator, size: int, look: str) -> None:
        self.rng = rng
        self.size = size
        self.is_domain = look == "domain"
        self.x, self.y = pixel_centers(size)
        self.edge_width = 1.4 / size
        self.image = np.zeros((3, size, size), f32)
        self.height = np.zeros((size, size), f32)
        self.level = np.zeros((size, size), f32)
        self.sunlight = np.ones((size, size), f32)
        # Most flights are near noon with the sun on one side of the sky: an arc, not a circle.
        azimuth = rng.uniform(-2.6, 0.4)
        self.sun = (float(np.cos(azimuth)), float(np.sin(azimuth)))
        self.shadow_length = rng.uniform(0.5, 1.5)
        self.adjectives: list[str] = []
        self.details: list[str] = []
        self.neighbors: list[str] = []
        self.season = ""

    # Random choices.

    def chance(self, probability: float) -> bool:
        """Draw True with this probability."""
        return bool(self.rng.random() < probability)

    def color(self, material: str, word: str, jitter: float = 0.08) -> np.ndarray:
        """This look's RGB [3] of a material, slightly different each time.

        Args:
            material: a key of `PALETTE`.
            word: one of the material's color words.
            jitter: standard deviation of the brightness in the domain look, relative.
        """
        variation = self.rng.standard_normal(4)  # brightness, then red, green, blue
        domain_rgb, base_rgb = np.asarray(PALETTE[material][word], f32)
        if self.is_domain:
            factor = 1 + jitter * variation[0] + 0.25 * jitter * variation[1:]
            return np.clip(domain_rgb * factor, 8, 250).astype(f32)
        return np.clip(base_rgb * (1 + 0.04 * variation[0]), 0, 255).astype(f32)

    def pick_color(
        self, material: str, weights: list[float] | None = None
    ) -> tuple[str, np.ndarray]:
        """Draw a variant of a material: its color word and its RGB [3]."""
        words = list(PALETTE[material])
        word = words[int(self.rng.choice(len(words), p=weights))]
        return word, self.color(material, word)

    def noise(self, frequency: float, octaves: int = 1, gain: float = 0.5) -> np.ndarray:
        """Fractal noise on this canvas (see `noise.fractal_noise`)."""
        return fractal_noise(self.rng, self.size, frequency, octaves, gain)

    # Geometry.

    def survey_angle(self) -> float:
        """Draw the direction of what people laid out, in radians.

        Surveyed land mostly keeps within a few degrees of the compass directions.
        """
        compass = self.rng.integers(4) * np.pi / 2 + self.rng.normal(0, 0.05)
        return compass if self.chance(0.85) else self.rng.uniform(0, np.pi)

    def coordinates(
        self, angle: float, warp: float = 0.0, frequency: float = 1.5
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates u and v, rotated by `angle` about the tile's center and bent by noise.

        Args:
            angle: in radians.
            warp: standard deviation of the bend, in tile widths.
            frequency: frequency of the bend.
        """
        x: np.ndarray = self.x - f32(0.5)
        y: np.ndarray = self.y - f32(0.5)
        if warp:
            x = x + f32(warp) * self.noise(frequency)
            y = y + f32(warp) * self.noise(frequency)
        cos = f32(np.cos(angle))
        sin = f32(np.sin(angle))
        return cos * x + sin * y, cos * y - sin * x

    def sun_direction(self, angle: float) -> tuple[float, float]:
        """The direction of the sun in coordinates that are rotated by `angle`."""
        cos = np.cos(angle)
        sin = np.sin(angle)
        return cos * self.sun[0] + sin * self.sun[1], cos * self.sun[1] - sin * self.sun[0]

    # Painting. A mask is the share of each pixel that is painted, in [0, 1].

    def fill(self, color: np.ndarray, mask: np.ndarray | float = 1.0) -> None:
        """Paint a color, [3] or [3, size, size], through a mask."""
        if color.ndim == 1:
            color = color[:, None, None]
        self.image += (color - self.image) * mask

    def mottle(self, field: np.ndarray, color: np.ndarray, amount: float) -> None:
        """Blend toward a color where the field is high; the base look draws hard-edged patches."""
        steepness = 0.5 if self.is_domain else 6.0
        self.fill(color, f32(amount) * np.clip(0.5 + steepness * (field - 0.3), 0, 1))

    def add_texture(self, field: np.ndarray, amount: float) -> None:
        """Multiply the brightness by a texture; the base look has none."""
        if self.is_domain:
            self.image *= np.clip(1 + f32(amount) * field, 0.3, 1.8)

    def raise_ground(self, field: np.ndarray, amount: float) -> None:
        """Raise the ground by amount * field, in tile widths; the base look has no relief."""
        if self.is_domain:
            self.height += f32(amount) * field

    def flatten(self, mask: np.ndarray) -> None:
        """Level the ground under a mask (water, pavement) and remove the shadows from it."""
        self.level = np.maximum(self.level, mask)
        self.remove_shadow(mask)

    def cast_shadow(self, mask: np.ndarray, strength: float) -> None:
        """Remove a share of the direct sun under a mask; the base look has no shadows."""
        if self.is_domain:
            self.sunlight *= 1 - f32(strength) * mask

    def remove_shadow(self, mask: np.ndarray) -> None:
        """Give the ground under a mask the whole direct sun again."""
        self.sunlight += (1 - self.sunlight) * mask

    def draw_crowns(
        self,
        u: np.ndarray,
        v: np.ndarray,
        angle: float,
        period: float,
        radius: tuple[float, float],
        keep: float,
        colors: tuple[np.ndarray, np.ndarray],
        jitter: float = 1.0,
        roughness: float = 0.2,
        where: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draw the crowns of trees on a jittered lattice, with their shadows.

        Args:
            u: coordinate along the lattice [size, size].
            v: coordinate across the lattice [size, size].
            angle: of these coordinates, in radians.
            period: of the lattice, in tile widths.
            radius: the least and the greatest, as a share of the period.
            keep: share of the lattice cells that hold a tree.
            colors: the two RGB [3] that crowns lie between.
            jitter: how far crowns leave the centers of their cells; 1 = up to the cell's border.
            roughness: of a crown's outline.
            where: mask [size, size] outside of which no crown is drawn.

        Returns:
            The mask of the crowns, [size, size].
        """
        offset_u, offset_v, numbers = lattice_cells(self.rng, u, v, period, period)
        ragged = self.noise(14, 2) * f32(roughness * period * 0.3)
        radii = f32(period) * (radius[0] + (radius[1] - radius[0]) * numbers[0])
        room = np.maximum(f32(0.5 * period) - radii, 0) * f32(2 * jitter)
        crown_u = offset_u - (numbers[1] - 0.5) * room
        crown_v = offset_v - (numbers[2] - 0.5) * room
        outside = np.where(numbers[3] < keep, f32(0), FAR_OUTSIDE)
        if where is not None:
            outside = outside + np.where(where > 0.5, f32(0), FAR_OUTSIDE)

        squared = crown_u * crown_u + crown_v * crown_v
        crowns = coverage(np.sqrt(squared) - radii + ragged + outside, self.edge_width)
        if self.is_domain:
            sun_u, sun_v = self.sun_direction(angle)
            reach = f32(0.55 * self.shadow_length) * radii
            distance = np.sqrt((crown_u + sun_u * reach) ** 2 + (crown_v + sun_v * reach) ** 2)
            shadow = distance - radii * f32(0.95) + ragged + outside
            self.cast_shadow(coverage(shadow, self.edge_width * 1.5) * (1 - crowns), 0.6)
        self.remove_shadow(crowns)
        self.level *= 1 - crowns

        first = colors[0][:, None, None]
        difference = (colors[1] - colors[0])[:, None, None]
        self.fill(first + difference * np.clip(numbers[3] / max(keep, 1e-3), 0, 1), crowns)
        # Lumps and a height of half a ball make a crown, not a bead.
        lumps = self.noise(18, 3, 0.8)
        ball = np.maximum(radii * radii - squared, 0) / radii
        self.raise_ground(ball * (1 + f32(0.22) * lumps) * crowns, 0.5)
        self.add_texture(lumps * crowns, 0.09)
        return crowns

    # From the painted ground to the picture.

    def develop(self) -> np.ndarray:
        """The finished tile, uint8 [size, size, 3]: as a sensor sees it, or as an illustration."""
        if not self.is_domain:
            blurred = blur(self.image, 0.06)
            return np.clip(np.moveaxis(blurred, 0, -1) + 0.5, 0, 255).astype(np.uint8)
        image = self._light(self.image)
        image = self._expose(image)
        image = self._add_sensor_effects(image)
        return np.clip(np.moveaxis(image, 0, -1) + f32(0.5), 0, 255).astype(np.uint8)

    def _light(self, image: np.ndarray) -> np.ndarray:
        """Light the ground [3, size, size] by the sun and the sky."""
        slope_y, slope_x = np.gradient(self.height * f32(self.size))
        slope = -(slope_x * f32(self.sun[0]) + slope_y * f32(self.sun[1]))
        slope *= 1 - self.level
        lit = 1 + np.tanh(slope * f32(self.rng.uniform(0.7, 1.1))) * f32(0.55)
        direct = lit * blur(self.sunlight, 0.12)
        # Ground in shadow or turned from the sun keeps blue skylight.
        skylight = np.array([-0.01, 0.0, 0.035], f32)[:, None, None]
        return image * (direct + skylight * (1 - direct))

    def _expose(self, image: np.ndarray) -> np.ndarray:
        """Apply saturation, exposure, white balance, gamma and haze to [3, size, size]."""
        rng = self.rng
        exposure = rng.uniform(0.78, 1.18)
        haze = rng.uniform(0, 1) ** 2 * 0.32
        gamma = rng.uniform(0.85, 1.15)
        warmth = rng.normal(0, 0.03)
        tint = rng.normal(0, 0.01)
        white_balance = np.array([1 + warmth, 1 + tint, 1 - warmth])
        gray = image.mean(0)
        image = gray + (image - gray) * f32(rng.uniform(0.6, 1.0))
        haze_color = np.array([196, 206, 216]) * rng.uniform(0.8, 1.05)
        image = image * (exposure * white_balance).astype(f32)[:, None, None]
        image = np.clip(image / 255, 0.004, 1.2) ** f32(gamma) * 255
        return image + (haze_color.astype(f32)[:, None, None] - image) * f32(haze)

    def _add_sensor_effects(self, image: np.ndarray) -> np.ndarray:
        """Add thin clouds, vignetting, blur and noise to [3, size, size]."""
        rng = self.rng
        clouds = self.noise(1.2, 2)
        image = image * (1 + f32(rng.uniform(0, 0.07)) * clouds)
        squared_radius = (self.x - f32(0.5)) ** 2 + (self.y - f32(0.5)) ** 2
        image = image * (1 - f32(rng.uniform(0, 0.3)) * squared_radius)
        image = blur(image, rng.uniform(0.02, 0.14))
        noise_level = rng.uniform(1.0, 4.0)  # standard deviation, of 255
        brightness, hue = rng.standard_normal((2, self.size, self.size), dtype=f32)
        hue_rgb = np.array([1, -0.4, -0.8], f32)[:, None, None]
        return image + f32(noise_level) * (brightness + f32(0.35) * hue_rgb * hue)
