/*
 * The five functions of libudev that libdevmapper calls, all in one place: to ask whether udev is there to be
 * waited for. There is no static libudev; secret/src/udev.rs answers instead.
 */
#ifndef LATCHKEY_LIBUDEV_H
#define LATCHKEY_LIBUDEV_H

struct udev;
struct udev_queue;

struct udev *udev_new(void);
struct udev *udev_unref(struct udev *udev);
struct udev_queue *udev_queue_new(struct udev *udev);
struct udev_queue *udev_queue_unref(struct udev_queue *queue);
int udev_queue_get_udev_is_active(struct udev_queue *queue);

#endif
