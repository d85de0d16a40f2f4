// Predicts mitochondria in the image in front, which Python sees in shared memory: no files.

#@ ImagePlus (label="EM image") image
#@ String (label="Network (auto: the one nearest in voxel size)", value="auto") model
#@ String (label="Python with clemreg (empty: as set up)", visibility="INVISIBLE", required=false, value="") python
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui
#@output ImagePlus prediction

import ij.CompositeImage
import ij.ImagePlus
import ij.ImageStack
import java.nio.ByteOrder
import java.util.function.Consumer

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))

SCRIPT = "from clemreg.fiji.appose import perform\n\nperform(task, verb, images, options)\n"
TYPES = [8: "uint8", 16: "uint16", 32: "float32"]

def appose(String name) {
    try {
        getClass().classLoader.loadClass("org.apposed.appose." + name)
    } catch (ClassNotFoundException absent) {
        clemreg.fail("This Fiji has no Appose.\nUse Segment Mitochondria, which works on files, or install a plugin that brings Appose.")
    }
}

/** The pixels of one time point as zyx in shared memory. */
def shared(ImagePlus source) {
    def shape = appose('NDArray$Shape').newInstance(appose('NDArray$Shape$Order').valueOf("C_ORDER"),
        [source.NSlices, source.height, source.width] as int[])
    def array = appose("NDArray").newInstance(appose('NDArray$DType').fromLabel(TYPES[source.bitDepth]), shape)
    def bytes = array.buffer().order(ByteOrder.nativeOrder())
    def target = source.bitDepth == 8 ? bytes : source.bitDepth == 16 ? bytes.asShortBuffer() : bytes.asFloatBuffer()
    (1..source.NSlices).each { target.put(source.stack.getPixels(source.getStackIndex(source.channel, it, source.frame))) }
    array
}

NOTES = ["clemreg-origin-nm-zyx", "clemreg-origin-of", "clemreg-frame"]

/** Where the first voxel is, x, y, z. */
def origin(ImagePlus source) {
    def words = clemreg.origin(source)
    words ? words.reverse().join(", ") + " nm" : ""
}

def voxelSize(ImagePlus source) {
    def size = source.calibration
    if (!size.scaled()) clemreg.fail("The image has no voxel size: set it with Image > Properties.")
    size.pixelWidth + ", " + size.pixelHeight + ", " + size.pixelDepth + " " + size.unit
}

/** A hyperstack of a czyx prediction, with the calibration of the image it is of. */
def hyperstack(array, List names, ImagePlus source) {
    def bytes = array.buffer()
    def plane = source.width * source.height
    def stack = new ImageStack(source.width, source.height)
    (0..<source.NSlices).each { z ->
        names.eachWithIndex { name, channel ->
            def pixels = new byte[plane]
            bytes.position((channel * source.NSlices + z) * plane)
            bytes.get(pixels)
            stack.addSlice(name.toString(), pixels)
        }
    }
    def result = new ImagePlus("prediction of " + source.title, stack)
    result.setDimensions(names.size(), source.NSlices, 1)
    result.setCalibration(source.calibration.copy())
    NOTES.findAll { source.getProp(it) != null }.each { result.setProp(it, source.getProp(it)) }
    names.size() > 1 ? new CompositeImage(result, CompositeImage.GRAYSCALE) : result
}

/** The Appose service of the Python that is set up. */
def worker() {
    def command = clemreg.command()
    if (!command.contains("-m")) clemreg.fail("Appose needs the Python itself, not " + command[0] + "\nChoose it in Setup and Doctor.")
    def folder = new File(command[0]).absoluteFile.parentFile
    def environment = folder.name in ["bin", "Scripts"] ? folder.parentFile : folder
    def entry = appose("Appose")
    def way = entry.metaClass.respondsTo(entry, "wrap", File) ? "wrap" : "system"
    entry."$way"(environment).python().start()
}

def follow(task, watcher) {
    def cancelled = false
    while (!task.status.isFinished()) {
        if (!cancelled && clemreg.isCancelled(watcher)) {
            cancelled = true
            task.cancel()
        }
        sleep(100)
    }
    if (task.status.toString() == "CANCELED") clemreg.cancelled()
    if (task.status.toString() != "COMPLETE") clemreg.fail(task.error ?: "The Python worker ended: " + task.status)
}

clemreg.attempt {
    if (!(image.bitDepth in TYPES)) clemreg.fail("The image has " + image.bitDepth + " bits, expected 8, 16 or 32 grey values.")
    def options = [em: [voxel_size: voxelSize(image), origin: origin(image)], model: model]
    def watcher = tasks.createTask("Segmenting mitochondria")
    def service = worker()
    def em = shared(image)
    watcher.start()
    try {
        def task = service.task(SCRIPT, [verb: "segment", images: [em: em], options: options])
        task.listen({ if (task.maximum > 0) status.showStatus(task.current as int, task.maximum as int, task.message ?: "") } as Consumer)
        task.start()
        follow(task, watcher)
        prediction = hyperstack(task.outputs.prediction, task.outputs.channels, image)
        task.outputs.prediction.close()
    } finally {
        watcher.finish()
        em.close()
        service.close()
        status.clearStatus()
    }
    if (!clemreg.headless) prediction.show()
}
