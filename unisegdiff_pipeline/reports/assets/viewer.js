// The case viewer: unpacks the volumes of the page, gives the image and the map to NiiVue, and draws the masks with a
// slice shader of its own. Reference and compared mask share NiiVue's drawing texture, four bits each.
'use strict';
(() => {
  const settings = JSON.parse(document.getElementById('settings').textContent)
  const $ = (id) => document.getElementById(id)
  const HEADER_BYTES = 352
  const MAP_STOPS = { R: [60, 140, 215, 250, 252], G: [9, 32, 72, 150, 253], B: [101, 105, 66, 10, 191], I: [0, 64, 128, 192, 255] }
  const REFERENCE = [0.34, 0.71, 0.91], MASK = [0.9, 0.62, 0], AGREE = [0.18, 0.75, 0.58], OTHER = [0.86, 0.61, 0.75]
  const IGNORED = [0.93, 0.93, 0.93]
  // The hues of the eight colours of the report's charts, in their order, and six more.
  const CLASSES = [
    REFERENCE, [0.94, 0.5, 0.25], AGREE, OTHER, MASK, [0.56, 0.86, 1], [0.72, 0.64, 0.51], [0.64, 0.67, 0.7],
    [0.94, 0.89, 0.26], [0.6, 0.85, 0.35], [0.72, 0.5, 0.95], [0.95, 0.45, 0.55], [0.45, 0.9, 0.9], [0.8, 0.75, 0.3]
  ]
  const NOT_SCORED = 'not scored'
  const PLANES = { sagittal: 0, coronal: 1, axial: 2 }
  const names = new Map(settings.labels)
  const single = settings.classes.length < 2
  const isClass = (value) => value !== 0 && value !== settings.ignored
  const [nx, ny, nz] = settings.shape
  const reference = settings.masks.find((mask) => mask.id === 'reference')
  const compared = settings.masks.filter((mask) => mask.id !== 'reference')
  const samples = compared.filter((mask) => mask.id.startsWith('sample'))
  let viewer, image, map, shares, referenceLabels, maskLabels
  let voxel = [0, 0, 0], wanted = 0

  // ------------------------------------------------------------------------------------------------ volumes

  async function unpacked(id) {
    const text = $(`data-${id}`).textContent
    const packed = new Uint8Array(Math.floor(text.length / 4) * 3 - (text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0))
    for (let from = 0, to = 0; from < text.length; from += 1 << 20) {
      const part = atob(text.slice(from, from + (1 << 20)))
      for (let i = 0; i < part.length; i++) packed[to++] = part.charCodeAt(i)
    }
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))
    return new Response(stream).arrayBuffer()
  }

  const voxelsOf = (buffer) =>
    new DataView(buffer).getInt16(70, true) === 2
      ? new Uint8Array(buffer, HEADER_BYTES)
      : new Int16Array(buffer, HEADER_BYTES)

  const labelsOf = async (id) => voxelsOf(await unpacked(id))

  async function sampleCounts() {
    const counts = new Uint16Array(nx * ny * nz)
    for (const { id } of samples) {
      const labels = await labelsOf(id)
      for (let i = 0; i < labels.length; i++) if (isClass(labels[i])) counts[i]++
    }
    return counts
  }

  // ----------------------------------------------------------------------------------------------- coordinates

  const times = (matrix, [x, y, z]) => [0, 1, 2].map((r) => matrix[r][0] * x + matrix[r][1] * y + matrix[r][2] * z + matrix[r][3])
  const toLps = (position) => { const [x, y, z] = times(settings.affine, position); return [-x, -y, z] }

  function toVoxel([x, y, z]) {
    const m = settings.affine
    const d = [-x - m[0][3], -y - m[1][3], z - m[2][3]]
    // The axes are orthogonal, so that the inverse is the transpose over the squared lengths.
    return [0, 1, 2].map((c) => {
      const squared = m[0][c] ** 2 + m[1][c] ** 2 + m[2][c] ** 2
      const along = (m[0][c] * d[0] + m[1][c] * d[1] + m[2][c] * d[2]) / squared
      return Math.min(Math.max(Math.round(along), 0), settings.shape[c] - 1)
    })
  }

  const indexOf = ([x, y, z]) => x + nx * (y + ny * z)

  function moveTo(position) {
    viewer.scene.crosshairPos = viewer.vox2frac(position)
    viewer.createOnLocationChange()
    viewer.drawScene()
  }

  function step(axis, by) {
    const position = [...voxel]
    position[axis] = Math.min(Math.max(position[axis] + by, 0), settings.shape[axis] - 1)
    moveTo(position)
  }

  // --------------------------------------------------------------------------------------------------- drawing

  const vec3 = (colour) => `vec3(${colour.map((c) => c.toFixed(3)).join(', ')})`

  const SHADER = `#version 300 es
precision highp int;
precision highp float;
uniform highp sampler3D volume;
uniform highp sampler3D overlay;
uniform highp sampler3D drawing;
uniform float overlays;
uniform float opacity;
uniform int referenceStyle;
uniform int maskStyle;
uniform int compare;
uniform float fill;
uniform float lineWidth;
in vec3 texPos;
out vec4 color;
const vec3 classes[${CLASSES.length}] = vec3[${CLASSES.length}](${CLASSES.map(vec3).join(', ')});
int labels(vec3 at) { return int(texture(drawing, at).r * 255.0 + 0.5); }
vec3 classColor(int label, vec3 whenSingle) {
  return label > ${CLASSES.length} ? ${vec3(IGNORED)} : ${single ? 'whenSingle' : 'classes[label - 1]'};
}
void main() {
  vec3 right = dFdx(texPos) * lineWidth, up = dFdy(texPos) * lineWidth;
  color = vec4(texture(volume, texPos).rgb, opacity);
  if (overlays > 0.0) {
    vec4 map = texture(overlay, texPos);
    color.rgb = mix(color.rgb, map.rgb, map.a);
  }
  int here = labels(texPos), reference = here & 15, mask = here >> 4;
  if (here == 0) return;
  bool referenceEdge = false, maskEdge = false;
  for (int i = -1; i <= 1; i++) for (int j = -1; j <= 1; j++) {
    int other = labels(texPos + float(i) * right + float(j) * up);
    referenceEdge = referenceEdge || (other & 15) != reference;
    maskEdge = maskEdge || (other >> 4) != mask;
  }
  vec3 referenceColor = ${vec3(REFERENCE)}, maskColor = ${vec3(MASK)};
  if (reference > 0) referenceColor = classColor(reference, referenceColor);
  if (mask > 0) maskColor = classColor(mask, maskColor);
  if (compare == 1) {
    vec3 fate = reference > ${CLASSES.length} ? ${vec3(IGNORED)} : reference == mask ? ${vec3(AGREE)} : mask == 0 ? ${vec3(REFERENCE)} : reference == 0 ? ${vec3(MASK)} : ${vec3(OTHER)};
    color.rgb = mix(color.rgb, fate, fill);
    return;
  }
  if (maskStyle == 2 && mask > 0) color.rgb = mix(color.rgb, maskColor, fill);
  if (referenceStyle == 2 && reference > 0) color.rgb = mix(color.rgb, referenceColor, fill);
  if (maskStyle == 1 && mask > 0 && maskEdge) color.rgb = mix(color.rgb, maskColor, min(1.0, 2.0 * fill));
  if (referenceStyle == 1 && reference > 0 && referenceEdge) color.rgb = mix(color.rgb, referenceColor, min(1.0, 2.0 * fill));
}`

  /** Four bits for a label: the place of its class, from 1, where colours repeat after 14; 15 for what is not scored. */
  const places = new Map(settings.labels.map(([value, name]) => [value, settings.classes.indexOf(name)]))
  function code(value) {
    if (!value) return 0
    return value === settings.ignored ? CLASSES.length + 1 : ((places.get(value) ?? value - 1) % CLASSES.length) + 1
  }

  function codes(largest) {
    const table = new Uint8Array(largest + 1)
    for (let value = 1; value <= largest; value++) table[value] = code(value)
    return table
  }

  function drawMasks() {
    const bitmap = viewer.drawBitmap
    const table = codes(32767)
    bitmap.fill(0)
    if (referenceLabels) for (let i = 0; i < bitmap.length; i++) if (referenceLabels[i]) bitmap[i] = table[referenceLabels[i]]
    if (maskLabels) for (let i = 0; i < bitmap.length; i++) if (maskLabels[i]) bitmap[i] |= table[maskLabels[i]] << 4
    viewer.refreshDrawing(false)
  }

  function applyStyle() {
    const gl = viewer.gl, program = viewer.customSliceShader.program
    const place = (name) => gl.getUniformLocation(program, name)
    gl.useProgram(program)
    const hidden = !compared.length || !reference
    gl.uniform1i(place('referenceStyle'), Number($('reference-style').value))
    gl.uniform1i(place('maskStyle'), Number($('mask-style').value))
    gl.uniform1i(place('compare'), hidden ? 0 : Number($('colours').value))
    gl.uniform1f(place('fill'), Number($('opacity').value))
    gl.uniform1f(place('lineWidth'), Math.max(1, Math.round(1.5 * (window.devicePixelRatio || 1))))
    viewer.drawScene()
    $('opacity-text').textContent = percent($('opacity').value)
    showLegend()
  }

  const percent = (share) => `${Math.round(100 * share)} %`
  const css = (colour) => `rgb(${colour.map((c) => Math.round(255 * c)).join(' ')})`

  function showLegend() {
    const shown = []
    const comparing = $('colours').value === '1' && reference && compared.length
    const add = (text, colour, filled) => shown.push([text, colour, filled])
    const title = compared.length ? $('mask').selectedOptions[0].textContent : ''
    if (comparing) {
      add('in both', AGREE, true)
      add('reference only', REFERENCE, true)
      add(`${title.toLowerCase()} only`, MASK, true)
      if (!single) add('other class', OTHER, true)
    } else if (single) {
      if (reference && $('reference-style').value !== '0') add('reference', REFERENCE, $('reference-style').value === '2')
      if (compared.length && $('mask-style').value !== '0') add(title.toLowerCase(), MASK, $('mask-style').value === '2')
    } else {
      const found = new Set(names.values())
      settings.classes.forEach((name, i) => found.has(name) && add(name, CLASSES[i % CLASSES.length], true))
    }
    if (settings.ignored !== null) add(NOT_SCORED, IGNORED, false)
    $('legend').replaceChildren(...shown.map(([text, colour, filled]) => {
      const item = document.createElement('li'), key = document.createElement('i')
      key.style.setProperty('--key', css(colour))
      key.classList.toggle('filled', filled)
      item.append(key, text)
      return item
    }))
  }

  // -------------------------------------------------------------------------------------------------- controls

  async function chooseMask() {
    const choice = ++wanted
    const labels = await labelsOf($('mask').value)
    if (choice !== wanted) return // another one was chosen meanwhile
    maskLabels = labels
    drawMasks()
    applyStyle()
    showReadout()
    document.body.dataset.mask = $('mask').value
  }

  async function chooseMap() {
    const choice = $('map').value
    if (choice === 'share') {
      shares ??= await sampleCounts()
      for (let i = 0; i < shares.length; i++) map.img[i] = Math.round((255 * shares[i]) / samples.length)
    } else if (choice === 'uncertainty') map.img.set(map.uncertainty)
    showMap()
    showReadout()
    document.body.dataset.map = choice
  }

  function showMap() {
    $('map-opacity-text').textContent = percent($('map-opacity').value)
    map.opacity = $('map').value === 'none' ? 0 : Number($('map-opacity').value)
    viewer.updateGLVolume()
  }

  async function chooseChannel() {
    const channel = settings.channels[$('channel').value]
    image.img = voxelsOf(await unpacked(`image${$('channel').value}`))
    image.hdr.scl_slope = channel.step
    image.hdr.scl_inter = channel.low
    setWindowRange(channel)
    applyWindow()
    showReadout()
  }

  function setWindowRange(channel) {
    for (const [id, value] of [['low', channel.window[0]], ['high', channel.window[1]]]) {
      const input = $(id)
      input.min = channel.low
      input.max = channel.high
      input.step = (channel.high - channel.low) / 1000
      input.value = value
    }
  }

  function applyWindow() {
    const low = Number($('low').value), high = Number($('high').value)
    image.cal_min = Math.min(low, high)
    image.cal_max = Math.max(low, high)
    $('low-text').textContent = number(low)
    $('high-text').textContent = number(high)
    viewer.updateGLVolume()
  }

  function zoomTo(zoom) {
    const pan = viewer.scene.pan2Dxyzmm
    const mm = viewer.frac2mm(viewer.scene.crosshairPos)
    const position = zoom === 1 ? [0, 0, 0] : [0, 1, 2].map((i) => pan[i] - (zoom - pan[3]) * mm[i])
    viewer.setPan2Dxyzmm([...position, zoom])
    showZoom()
  }

  /** A large axial plane with the other two beside it, or below it where the canvas is tall; or one plane alone. */
  function layOut() {
    const plane = Number($('view').value)
    const { clientWidth: width, clientHeight: height } = $('canvas')
    const a = 0.6, gap = 0.006
    if (plane !== 3) viewer.clearCustomLayout()
    else if (width > 1.15 * height) {
      viewer.setCustomLayout([
        { sliceType: 0, position: [0, 0, a - gap, 1] },
        { sliceType: 1, position: [a, 0, 1 - a, 0.5 - gap] },
        { sliceType: 2, position: [a, 0.5, 1 - a, 0.5] }
      ])
    } else {
      viewer.setCustomLayout([
        { sliceType: 0, position: [0, 0, 1, a - gap] },
        { sliceType: 1, position: [0, a, 0.5 - gap, 1 - a] },
        { sliceType: 2, position: [0.5, a, 0.5, 1 - a] }
      ])
    }
    viewer.setSliceType(plane)
    drawCrosshair()
  }

  /** Lines of about a pixel and a half, open around the point they mark; NiiVue knows them in mm only. */
  function drawCrosshair() {
    const largest = Math.max(...[0, 1, 2].map((c) => settings.shape[c] * Math.hypot(...[0, 1, 2].map((r) => settings.affine[r][c]))))
    const share = $('view').value === '3' ? 0.6 : 1
    const millimetres = largest / (share * Math.min($('canvas').clientWidth, $('canvas').clientHeight)) / viewer.scene.pan2Dxyzmm[3]
    viewer.opts.crosshairGap = 9 * millimetres
    viewer.setCrosshairWidth(1.5 * millimetres)
  }

  function showZoom() {
    const zoom = viewer.scene.pan2Dxyzmm[3]
    $('zoom').value = zoom
    $('zoom-text').textContent = `${zoom.toFixed(zoom % 1 ? 2 : 0)}\u00d7`
    drawCrosshair()
  }

  const number = (value) => {
    const size = Math.abs(value)
    const digits = size >= 100 || value === Math.round(value) ? 0 : size >= 1 ? 2 : 4
    return value.toFixed(digits).replace('-', '\u2212')
  }

  const labelName = (value) =>
    !value ? '\u2013' : value === settings.ignored ? NOT_SCORED : names.get(value) ?? `label ${value}`

  function showReadout() {
    const file = times(settings.toFile, voxel).map((v, i) => Math.min(Math.max(Math.floor(v + 1e-6), 0), settings.fileShape[i] - 1))
    const at = indexOf(voxel)
    $('voxel').textContent = file.join(', ')
    $('millimetres').textContent = toLps(voxel).map((v) => v.toFixed(1).replace('-', '\u2212')).join(', ')
    const { filled } = settings.channels[$('channel').value || 0]
    $('grey').textContent = number(image.img[at] === 0 && filled !== null ? filled : image.img[at] * image.hdr.scl_slope + image.hdr.scl_inter)
    if (referenceLabels) $('reference-label').textContent = labelName(referenceLabels[at])
    if (maskLabels) {
      $('mask-title').textContent = $('mask').selectedOptions[0].textContent
      $('mask-label').textContent = labelName(maskLabels[at])
    }
    if (shares) $('share').textContent = `${shares[at]} of ${samples.length}`
    if (settings.uncertainty) $('uncertainty').textContent = (map.uncertainty[at] / 255).toFixed(2)
    for (const [plane, axis] of Object.entries(PLANES)) {
      const fileAxis = settings.fileAxes[axis]
      $(plane).value = voxel[axis]
      $(`${plane}-text`).textContent = `${'xyz'[fileAxis]} ${file[fileAxis]} / ${settings.fileShape[fileAxis] - 1}`
    }
  }

  function located() {
    voxel = Array.from(viewer.frac2vox(viewer.scene.crosshairPos), (v, i) => Math.min(Math.max(Math.round(v), 0), settings.shape[i] - 1))
    document.body.dataset.voxel = voxel.join(' ')
    showReadout()
  }

  function chooseMark() {
    const mark = settings.marks[$('mark').value]
    if (mark) moveTo(toVoxel(mark.mm))
  }

  function stepSelect(select, by) {
    if (select.options.length < 2) return
    select.selectedIndex = (select.selectedIndex + by + select.options.length) % select.options.length
    select.dispatchEvent(new Event('change'))
  }

  const toggle = (select, shown) => {
    select.value = select.value === '0' || select.value === 'none' ? shown : select.querySelector('[value="0"], [value=none]').value
    select.dispatchEvent(new Event('change'))
  }

  function onKey(event) {
    const onCanvas = event.target === $('canvas')
    if (onCanvas) event.stopPropagation() // NiiVue has keys of its own, some of which edit
    if (event.ctrlKey || event.altKey || event.metaKey || (!onCanvas && event.target.matches('input, select, button, summary, a'))) return
    const only = { 0: 2, 1: 1, 2: 0 }[$('view').value]
    const keys = {
      arrowup: () => step(event.shiftKey ? 1 : only ?? 2, 1),
      arrowdown: () => step(event.shiftKey ? 1 : only ?? 2, -1),
      arrowleft: () => step(0, -1),
      arrowright: () => step(0, 1),
      n: () => stepSelect($('mark'), event.shiftKey ? -1 : 1),
      s: () => stepSelect($('mask'), event.shiftKey ? -1 : 1),
      r: () => toggle($('reference-style'), '1'),
      p: () => toggle($('mask-style'), '2'),
      u: () => $('map').options.length && toggle($('map'), $('map').options[1].value),
      '+': () => nudge($('opacity'), 1),
      '-': () => nudge($('opacity'), -1),
      0: () => zoomTo(1)
    }
    const action = keys[event.key.toLowerCase()]
    if (!action) return
    event.preventDefault()
    action()
  }

  function nudge(input, by) {
    input.value = Number(input.value) + 2 * by * Number(input.step)
    input.dispatchEvent(new Event('input'))
  }

  function fillSelect(select, options) {
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value)))
  }

  function preparePanel() {
    const present = {
      'needs-reference': reference, 'needs-mask': compared.length, 'needs-both': reference && compared.length,
      'needs-samples': samples.length, 'needs-uncertainty': settings.uncertainty, 'needs-channels': settings.channels.length > 1
    }
    for (const [name, there] of Object.entries(present)) for (const element of document.querySelectorAll(`.${name}`)) element.hidden = !there
    $('masks').hidden = !settings.masks.length
    $('places').hidden = !settings.marks.length
    $('maps').hidden = !settings.uncertainty && !samples.length
    fillSelect($('mask'), compared.map((mask) => [mask.id, mask.title]))
    fillSelect($('channel'), settings.channels.map((channel, index) => [index, channel.title]))
    fillSelect($('mark'), settings.marks.map((mark, index) => [index, mark.name]))
    const maps = [['none', 'none']]
    if (settings.uncertainty) maps.push(['uncertainty', 'uncertainty'])
    if (samples.length) maps.push(['share', 'fraction of samples'])
    fillSelect($('map'), maps)
    for (const [plane, axis] of Object.entries(PLANES)) $(plane).max = settings.shape[axis] - 1
    const stops = MAP_STOPS.R.map((r, i) => `rgb(${r} ${MAP_STOPS.G[i]} ${MAP_STOPS.B[i]} / ${(i + 1) / 5})`)
    document.querySelector('.ramp i').style.setProperty('--stops', stops.join(', '))
    setWindowRange(settings.channels[0])
  }

  function connect() {
    const on = (id, kind, action) => $(id).addEventListener(kind, action)
    for (const [plane, axis] of Object.entries(PLANES)) {
      on(plane, 'input', () => step(axis, Number($(plane).value) - voxel[axis]))
    }
    on('view', 'change', layOut)
    on('zoom', 'input', () => zoomTo(Number($('zoom').value)))
    on('mask', 'change', chooseMask)
    for (const id of ['reference-style', 'mask-style', 'colours']) on(id, 'change', applyStyle)
    on('opacity', 'input', applyStyle)
    on('map', 'change', chooseMap)
    on('map-opacity', 'input', showMap)
    on('channel', 'change', chooseChannel)
    for (const id of ['low', 'high']) on(id, 'input', applyWindow)
    on('mark', 'change', chooseMark)
    on('previous', 'click', () => stepSelect($('mark'), -1))
    on('next', 'click', () => stepSelect($('mark'), 1))
    on('panel', 'submit', (event) => event.preventDefault())
    $('canvas').addEventListener('pointerup', () => setTimeout(showZoom))
    window.addEventListener('keydown', onKey, true)
    window.addEventListener('keyup', (event) => event.target === $('canvas') && event.stopPropagation(), true)
    new ResizeObserver(layOut).observe($('canvas'))
    window.addEventListener('beforeprint', () => viewer.drawScene())
  }

  // ----------------------------------------------------------------------------------------------------- start

  /** Middle of the slice with the most mask voxels, in the plane with the coarsest spacing last; the image's middle without. */
  function startVoxel() {
    const labels = [referenceLabels, maskLabels].find((l) => l && l.some(isClass))
    if (!labels) return settings.shape.map((n) => Math.floor(n / 2))
    const counts = new Float64Array(nz), sums = Array.from({ length: nz }, () => [0, 0])
    for (let z = 0, i = 0; z < nz; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++, i++) {
      if (!isClass(labels[i])) continue
      counts[z]++
      sums[z][0] += x
      sums[z][1] += y
    }
    const z = counts.indexOf(Math.max(...counts))
    return [Math.round(sums[z][0] / counts[z]), Math.round(sums[z][1] / counts[z]), z]
  }

  async function loadLibrary() {
    const script = document.createElement('script')
    script.textContent = new TextDecoder().decode(await unpacked('niivue')) // its hash is in the policy of the page
    document.head.append(script)
  }

  async function addVolume(buffer, name, colormap, opacity, low, high) {
    const volume = await niivue.NVImage.new(buffer, `${name}.nii`, colormap, opacity, null, low, high)
    viewer.addVolume(volume)
    return volume
  }

  async function addMap() {
    const buffer = settings.uncertainty ? await unpacked('uncertainty') : await unpacked(samples[0].id)
    const header = buffer.slice(0, HEADER_BYTES), view = new DataView(header)
    view.setInt16(70, 2, true) // 8 bits
    view.setInt16(72, 8, true)
    view.setFloat32(112, 1 / 255, true) // slope
    const content = new Uint8Array(HEADER_BYTES + nx * ny * nz)
    content.set(new Uint8Array(header))
    if (settings.uncertainty) content.set(new Uint8Array(buffer, HEADER_BYTES), HEADER_BYTES)
    map = await addVolume(content.buffer, 'map', 'map', 0, 0.01, 1)
    if (settings.uncertainty) map.uncertainty = map.img.slice()
  }

  async function start() {
    preparePanel()
    await loadLibrary()
    viewer = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.75, 0.8, 0.85, 1], crosshairWidthUnit: 'mm',
      isRadiologicalConvention: true, multiplanarShowRender: 0, multiplanarPadPixels: 4, sliceType: 3, tileMargin: 0,
      dragMode: 4, dragAndDropEnabled: false, loadingText: '', logLevel: 'error', viewModeHotKey: '', clipPlaneHotKey: '',
      cycleClipPlaneHotKey: '', fontColor: [0.93, 0.35, 0.65, 1], // read on bright and on dark tissue
      showAllOrientationMarkers: true, isOrientationTextVisible: settings.sides, sagittalNoseLeft: true
    })
    viewer.addColormap('map', { ...MAP_STOPS, A: [0, 90, 160, 210, 255] })
    await viewer.attachToCanvas($('canvas'), false)
    image = await addVolume(await unpacked('image0'), 'image', 'gray', 1, ...settings.channels[0].window)
    if (settings.uncertainty || samples.length) await addMap()
    if (reference) referenceLabels = await labelsOf('reference')
    if (compared.length) maskLabels = await labelsOf(compared[0].id)
    viewer.createEmptyDrawing()
    viewer.setCustomSliceShader(SHADER)
    drawMasks()
    viewer.onLocationChange = located
    $('panel').hidden = false
    connect()
    applyWindow()
    if (settings.uncertainty) {
      $('map').value = 'uncertainty'
      $('mask-style').value = '1' // a filled mask would hide the map
    }
    if (map) showMap()
    applyStyle()
    layOut()
    showZoom()
    moveTo(settings.marks.length ? toVoxel(settings.marks[0].mm) : startVoxel())
    $('status').textContent = ''
    document.body.dataset.ready = 'true'
    if (samples.length) {
      shares = await sampleCounts()
      showReadout()
    }
  }

  start().catch((error) => {
    const old = !document.createElement('canvas').getContext('webgl2') || typeof DecompressionStream === 'undefined'
    $('status').textContent = old
      ? 'This browser lacks WebGL 2 or DecompressionStream, which the viewer needs; use a current Chrome, Edge, Firefox or Safari with hardware acceleration.'
      : `The volumes cannot be shown: ${error.message}`
    document.body.dataset.ready = 'failed'
    if (!old) throw error
  })
})()
