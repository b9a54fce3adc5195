// "@" is NiiVue's own name for its folder of sources.
export { Niivue } from '@/niivue/index.ts'
export { NVImage } from '@/nvimage/index.ts'
