// Bundle of NiiVue for the case viewer: what shows NIfTI volumes in slices, and nothing that asks the network.
//
// Built from NiiVue's published TypeScript sources, unchanged but for the modules below, which are replaced by empty
// ones: readers of other formats, meshes, Zarr stores (WebAssembly codecs), colour maps and the picture used to light
// surfaces. The bundle is a third of the published one, and no colour map with terms of its own comes along.
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { build } from 'esbuild'

const [output] = process.argv.slice(2)
const packages = join(process.cwd(), 'node_modules')
const source = join(packages, '@niivue/niivue/src')
const version = (name) => JSON.parse(readFileSync(join(packages, name, 'package.json'), 'utf-8')).version

const grey = '{R: [0, 255], G: [0, 255], B: [0, 255], A: [0, 128], I: [0, 255]}'
const readers = ['Afni', 'BrainVoyager', 'DsiStudio', 'Ecat', 'Image', 'Itk', 'Mgh', 'Mrtrix', 'Nrrd', 'Numpy', 'Zarr']
const onePixel =
  'data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=='
const replaced = {
  'cmaps/index.ts': `export const gray = ${grey}; export const $itksnap = ${grey}`,
  'matcaps/Shiny.jpg': `export default '${onePixel}'`,
  'nvmesh-loaders.ts': 'export class NVMeshLoaders {}',
  'nvimage/ImageReaders/index.ts':
    readers.map((name) => `export const ${name} = {}`).join('; ') + "; export * as Nii from './nii'",
  'nvimage/ZarrProcessor.ts': 'export {}',
  'nvimage/zarr/NVZarrHelper.ts': 'export class NVZarrHelper {}'
}

const used = new Set()
const parts = {
  name: 'parts',
  setup(b) {
    b.onResolve({ filter: /^@\// }, (args) =>
      b.resolve('./' + args.path.slice(2), { kind: args.kind, resolveDir: source })
    )
    b.onLoad({ filter: /niivue[\\/]src[\\/]/ }, (args) => {
      const name = args.path.slice(source.length + 1).replaceAll('\\', '/')
      if (!(name in replaced)) return undefined
      used.add(name)
      return { contents: replaced[name], loader: 'ts', resolveDir: dirname(args.path) }
    })
  }
}

const result = await build({
  entryPoints: ['entry.js'],
  bundle: true,
  minify: true,
  charset: 'utf8',
  format: 'iife',
  globalName: 'niivue',
  target: 'es2022',
  loader: { '.png': 'dataurl' },
  legalComments: 'none',
  banner: {
    js: `/*! NiiVue ${version('@niivue/niivue')}, parts of it (BSD-2-Clause), with packages under MIT and ISC: niivue.LICENSE.txt */`
  },
  plugins: [parts],
  metafile: true,
  logLevel: 'warning',
  write: false
})
const missing = Object.keys(replaced).filter((name) => !used.has(name))
if (missing.length) throw new Error(`NiiVue no longer has ${missing.join(', ')}; look what became of them`)

// The licence of each package whose code is in the bundle.
const inputs = Object.values(result.metafile.outputs)[0].inputs
const names = new Set()
for (const [path, { bytesInOutput }] of Object.entries(inputs)) {
  const name = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]
  if (name && bytesInOutput > 0) names.add(name)
}
const licence = (name) => {
  if (name === '@niivue/niivue') return readFileSync('NIIVUE_LICENSE.txt', 'utf-8') // not in its npm package
  for (const file of ['LICENSE', 'LICENSE.md', 'license']) {
    try {
      return readFileSync(join(packages, name, file), 'utf-8')
    } catch {}
  }
  throw new Error(`${name} has no licence file`)
}
const rule = '-'.repeat(100)
const texts = [...names].sort().map((name) => {
  const { license } = JSON.parse(readFileSync(join(packages, name, 'package.json'), 'utf-8'))
  return `${rule}\n${name} ${version(name)} (${license})\n${rule}\n\n${licence(name).trim()}\n`
})
const head =
  'niivue.min.js holds parts of NiiVue (https://github.com/niivue/niivue) and of the packages below, and the font\n' +
  'Roboto Regular (Copyright Google, Apache License 2.0, whose text is in the file LICENSE of this package) as a texture.\n' +
  'tools/vendor_niivue builds it; changed are only the modules listed in its build.mjs, which are left out.\n'
writeFileSync(join(output, 'niivue.min.js'), result.outputFiles[0].contents)
writeFileSync(join(output, 'niivue.LICENSE.txt'), [head, ...texts].join('\n').replaceAll('\r\n', '\n'))
const sizes = Object.entries(inputs).sort((a, b) => b[1].bytesInOutput - a[1].bytesInOutput)
for (const [path, { bytesInOutput }] of sizes.slice(0, 8)) console.log(bytesInOutput, path)
