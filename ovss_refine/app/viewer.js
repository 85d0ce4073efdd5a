// The border between baseline and refined result, their opacity, and what lies under the pointer.
// Runs once, in the page; what it needs comes with each result (see `views.result`).
const results = document.getElementById("results")
const under = element.querySelector("#under"), border = element.querySelector("#border")
const hint = "Point at the image, or tap it, to see the class there and how confident the model is of it."
const pixels = new WeakMap()

function set(name, percent) {
    results.style.setProperty(name, `${percent}%`)
}

// The bytes of an image: [high byte of the class, low byte, 255 * confidence, 255] of each pixel.
function read(image) {
    if (!pixels.has(image)) {
        const canvas = document.createElement("canvas")
        canvas.width = image.naturalWidth
        canvas.height = image.naturalHeight
        const context = canvas.getContext("2d")
        context.drawImage(image, 0, 0)
        pixels.set(image, context.getImageData(0, 0, canvas.width, canvas.height))
    }
    return pixels.get(image)
}

function describe(stack, kind, x, y) {
    const image = stack.querySelector(`.${kind}-facts`)
    if (!image?.complete || !image.naturalWidth) return null
    const { data, width, height } = read(image)
    const at = 4 * (Math.floor(y * height) * width + Math.floor(x * width))
    const name = JSON.parse(stack.dataset.names)[256 * data[at] + data[at + 1]]
    return `${name}, confidence ${Math.round(data[at + 2] / 2.55)}%`
}

function point(event) {
    const stack = event.target.closest?.(".stack")
    if (!stack) {
        under.textContent = hint
        return
    }
    const box = stack.getBoundingClientRect()
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return
    if (event.buttons) {
        border.value = 100 * x
        set("--border", border.value)
    }
    const [before, after] = ["before", "after"].map(kind => describe(stack, kind, x, y))
    under.textContent = after ? `Refined: ${after}. Baseline: ${before}.` : hint
}

under.textContent = hint
border.addEventListener("input", () => set("--border", border.value))
element.querySelector("#tint").addEventListener("input", event => set("--tint", event.target.value))
results.addEventListener("pointermove", point)
results.addEventListener("pointerdown", point)
results.addEventListener("dragstart", event => event.target.closest(".stack") && event.preventDefault())
