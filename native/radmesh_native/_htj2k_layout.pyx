# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Where everything of a tile is: resolutions, subbands, precincts, code blocks (T.800 annex B)."""


cdef inline int64_t larger(int64_t a, int64_t b) noexcept nogil:
    return a if a > b else b


cdef inline int64_t smaller(int64_t a, int64_t b) noexcept nogil:
    return a if a < b else b


cdef void tile_area(const Header *header, int64_t tile, Rect *area) noexcept nogil:
    """B.3: tiles are counted row by row."""
    cdef int64_t across = (header.image.x1 - <int64_t> header.tile_x0 + header.tile_width - 1) // header.tile_width
    cdef int64_t x = header.tile_x0 + (tile % across) * header.tile_width
    cdef int64_t y = header.tile_y0 + (tile // across) * header.tile_height
    area.x0 = <int32_t> larger(x, header.image.x0)
    area.y0 = <int32_t> larger(y, header.image.y0)
    area.x1 = <int32_t> smaller(x + header.tile_width, header.image.x1)
    area.y1 = <int32_t> smaller(y + header.tile_height, header.image.y1)


cdef void lay_resolution(const Style *style, Layout *layout, int r) noexcept nogil:
    cdef Resolution *resolution = &layout.resolutions[r]
    cdef Rect *area = &resolution.area
    cdef Band *band
    cdef int down = layout.levels - r
    cdef int level = down + 1 if r else down
    cdef int64_t half = <int64_t> 1 << (level - 1) if r else 0
    cdef int b, halved = 1 if r else 0
    area.x0 = ceil_shift(layout.area.x0, down)
    area.y0 = ceil_shift(layout.area.y0, down)
    area.x1 = ceil_shift(layout.area.x1, down)
    area.y1 = ceil_shift(layout.area.y1, down)
    resolution.plane = level & 1
    resolution.count = 3 if r else 1
    for b in range(resolution.count):
        band = &resolution.bands[b]
        band.orientation = b + halved
        band.index = 3 * (r - 1) + 1 + b if r else 0
        # B.15
        band.area.x0 = ceil_shift(layout.area.x0 - half * (band.orientation & 1), level)
        band.area.y0 = ceil_shift(layout.area.y0 - half * (band.orientation >> 1), level)
        band.area.x1 = ceil_shift(layout.area.x1 - half * (band.orientation & 1), level)
        band.area.y1 = ceil_shift(layout.area.y1 - half * (band.orientation >> 1), level)
        band.left = width_of(&layout.resolutions[r - 1].area) if band.orientation & 1 else 0
        band.top = height_of(&layout.resolutions[r - 1].area) if band.orientation >> 1 else 0
    resolution.precinct_width = style.precincts[r] & 15
    resolution.precinct_height = style.precincts[r] >> 4
    # B.16
    resolution.first_x = area.x0 >> resolution.precinct_width
    resolution.first_y = area.y0 >> resolution.precinct_height
    resolution.across = 0
    resolution.down = 0
    if area.x1 > area.x0 and area.y1 > area.y0:
        resolution.across = ceil_shift(area.x1, resolution.precinct_width) - resolution.first_x
        resolution.down = ceil_shift(area.y1, resolution.precinct_height) - resolution.first_y
    # B.17, B.18
    resolution.block_width = <int> smaller(style.block_width, resolution.precinct_width - halved)
    resolution.block_height = <int> smaller(style.block_height, resolution.precinct_height - halved)


cdef void lay_out(const Style *style, const Rect *area, Layout *layout) noexcept nogil:
    """Lay out a tile. Precincts of resolutions above 0 are 2 at least, both ways: whoever read the header saw to it."""
    cdef int r
    layout.area = area[0]
    layout.levels = style.levels
    for r in range(style.levels + 1):
        lay_resolution(style, layout, r)


cdef void lay_grid(const Resolution *resolution, int band, int32_t x, int32_t y, Grid *grid) noexcept nogil:
    """The code blocks of a subband in precinct (x, y), counted from 0."""
    cdef const Rect *whole = &resolution.bands[band].area
    cdef int halved = 1 if resolution.bands[band].orientation else 0
    cdef int wide = resolution.precinct_width - halved
    cdef int high = resolution.precinct_height - halved
    cdef Rect *area = &grid.area
    area.x0 = <int32_t> larger(<int64_t> (resolution.first_x + x) << wide, whole.x0)
    area.y0 = <int32_t> larger(<int64_t> (resolution.first_y + y) << high, whole.y0)
    area.x1 = <int32_t> smaller(<int64_t> (resolution.first_x + x + 1) << wide, whole.x1)
    area.y1 = <int32_t> smaller(<int64_t> (resolution.first_y + y + 1) << high, whole.y1)
    grid.first_x = area.x0 >> resolution.block_width
    grid.first_y = area.y0 >> resolution.block_height
    grid.across = 0
    grid.down = 0
    if area.x1 > area.x0 and area.y1 > area.y0:
        grid.across = ceil_shift(area.x1, resolution.block_width) - grid.first_x
        grid.down = ceil_shift(area.y1, resolution.block_height) - grid.first_y


cdef void lay_block(const Resolution *resolution, const Grid *grid, int32_t x, int32_t y, Rect *area) noexcept nogil:
    """The area of block (x, y) of a grid, counted from 0."""
    cdef int wide = resolution.block_width, high = resolution.block_height
    area.x0 = <int32_t> larger(<int64_t> (grid.first_x + x) << wide, grid.area.x0)
    area.y0 = <int32_t> larger(<int64_t> (grid.first_y + y) << high, grid.area.y0)
    area.x1 = <int32_t> smaller(<int64_t> (grid.first_x + x + 1) << wide, grid.area.x1)
    area.y1 = <int32_t> smaller(<int64_t> (grid.first_y + y + 1) << high, grid.area.y1)
